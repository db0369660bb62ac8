"""How a pipeline is judged: pictures drawn on Ray, scores by a judge, a gate over the scores."""
