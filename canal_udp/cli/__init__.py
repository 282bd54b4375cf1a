"""The `canal` command, one module per group; a module is imported only when its command is called."""
