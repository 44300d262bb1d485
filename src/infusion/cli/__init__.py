"""Words on a command line -> files; everything it does can be done from Python."""
