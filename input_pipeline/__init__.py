"""From files to uint8 batches. Deals with pixels, not with models."""
