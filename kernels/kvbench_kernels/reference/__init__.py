"""What each kernel must leave behind, in plain torch: slow, obvious, and on any device."""
