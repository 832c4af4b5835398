"""What gunicorn knows only in some versions: an older one passes over a setting that it does not have."""

control_socket_disable = True  # one path in the home folder, over which two backends would quarrel
