"""When flows run, who may train, and what goes on after a crash."""
