"""Which version answers a request: the ledger's, a canary's, a shadow's."""
