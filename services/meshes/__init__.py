"""/v1/meshes: shapes in space as jobs, as clips are: they outlive the request that asked for them."""
