"""Run a command under capture, end it so that nothing is lost, analyse."""
