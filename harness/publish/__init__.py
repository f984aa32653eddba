"""What others read: reports, figures, MLflow, an audit in words."""
