"""A base that is spread over the processes that torchrun starts (`train.shard=fsdp`)."""
