"""Tests of vhost_user."""
