"""Reports. They are made from finished results alone."""
