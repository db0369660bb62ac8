"""The history of the database's shape, run by `infra.database` when a database is opened."""
