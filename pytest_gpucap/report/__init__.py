"""Reports: made from finished results alone, in the plain form of the result file."""
