"""Who stands where, since when and by whose word; promotions, votes and rollouts."""
