"""Results for agents: read-only tools of the Model Context Protocol over given folders."""
