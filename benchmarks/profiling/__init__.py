"""Where our own time goes, and how far that is from what the machine, the library and the system let anybody reach."""
