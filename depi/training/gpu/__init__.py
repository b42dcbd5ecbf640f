"""Checks of a GPU: whether it computes what DePi's processor path computes, and how fast.

No machine that DePi was written on has a GPU. What is wrong on one is found here, before it costs a training,
and named with the flag that switches it off. The checks run in processes of their own, which may crash or
hang.
"""
