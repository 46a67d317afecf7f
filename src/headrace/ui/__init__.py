"""The dashboard: pages that look at a log, and change it only by the requests that the command line makes too."""
