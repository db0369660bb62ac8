"""What names equal work: the meaning of our code, and what made one version another than the one before."""
