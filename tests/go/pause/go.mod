module overlayd/tests/pause

go 1.24
