"""Silicon truth: predictions beside measurements that no fit has seen, and thresholds that fail."""
