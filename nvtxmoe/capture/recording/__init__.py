"""Count the routing of a step: the tensors kept, the counting kernel, the recorder."""
