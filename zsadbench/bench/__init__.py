"""Speed measurements as ratios within one run."""
