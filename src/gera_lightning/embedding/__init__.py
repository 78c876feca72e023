"""From raw items to embedding stores."""
