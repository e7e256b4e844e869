"""The NVIDIA FLARE engine (extra ``edgeprune[flare]``): tasks carry envelopes, nothing more.

``ceremony``: provisioning, the processes and their settings; ``server``: the workflow; ``device``: the executor.
"""
