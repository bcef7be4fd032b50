"""The command line: `ringdp run`, `ringdp info`, `ringdp bench`. Each a module, imported when asked for."""
