"""What people look at: predictions, overlays, reports and figures."""
