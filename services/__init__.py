"""What answers requests: the gateway, the stages behind it, the step engine."""
