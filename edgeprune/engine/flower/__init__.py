"""The Flower engine (extra ``edgeprune[flower]``): SuperLink and SuperNodes carry envelopes, nothing more.

``ceremony``: the processes and their settings; ``server``: the ServerApp; ``client``: the ClientApp; ``gate``: what of
the SuperLink the network may see. Only flwr.app, flwr.serverapp and flwr.clientapp are imported.
"""
