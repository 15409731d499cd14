"""From files to uint8 batches: knows pixels, knows no model."""
