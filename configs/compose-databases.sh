#!/bin/sh
# Runs once, on PostgreSQL's first start: one user and one database for each of the two servers.
set -eu
for name in elnet label_studio; do
  psql --username postgres --set ON_ERROR_STOP=1 --set name="$name" --set password="$POSTGRES_PASSWORD" <<'SQL'
CREATE USER :"name" PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
SQL
done
