"""Several replicas as one: started together, driven together, judged together."""
