-- Run once, when the volume is empty. The server itself makes the first database, mlflow.
CREATE DATABASE mlflow_auth;
