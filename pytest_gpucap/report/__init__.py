"""Reports, made from the results of a result file alone."""
