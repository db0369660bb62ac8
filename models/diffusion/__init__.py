"""Diffusion and flow models: the family in `ddpm`, its noise `schedules`, its `samplers`."""
