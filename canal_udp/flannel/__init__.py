"""flanneld's own ways: its command line, backends, log lines and rules, mapped onto the daemon."""
