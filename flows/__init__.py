"""What is scheduled: the way of a recipe from data to a served version, and the command line over it."""
