"""From a request to its samples: what passes between the gateway and the stages."""
