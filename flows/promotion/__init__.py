"""From candidate to production: gate, smoke checks, approvals, rollouts, release."""
