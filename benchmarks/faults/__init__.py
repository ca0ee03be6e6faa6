"""Fault injection: a pipeline that is killed, cut off and run out of disk until it is done, against a calm one."""
