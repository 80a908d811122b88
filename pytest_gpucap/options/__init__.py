"""Options: what a session is told on the command line and in the ini file, before any test is collected."""
