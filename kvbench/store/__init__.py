"""Where blocks live: engines that move them to and from a tier."""
