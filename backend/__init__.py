"""Label Studio, HTTP and the command line."""
