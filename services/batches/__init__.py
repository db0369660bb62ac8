"""/v1/batches: many requests in one file, answered in another one by a job."""
