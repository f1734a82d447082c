output "store" {
  description = "The setting store of every process."
  value       = "aws://${var.prefix}?region=${data.aws_region.here.name}&bucket=${var.bucket}"
}

output "policies" {
  description = "The policy of each role's processes."
  value       = { for role, p in aws_iam_policy.role : role => p.arn }
}

data "aws_region" "here" {}
