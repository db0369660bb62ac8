"""Model versions and runs, in MLflow."""
