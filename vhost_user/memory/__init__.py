"""The guest's memory: regions, IOTLB, dirty log, in-flight file, and words that both sides write."""
