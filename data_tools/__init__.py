"""Offline preparation: raw videos and images -> a frozen shard set. gen1_train never imports this."""
