# Work that nobody does would be lost after 14 days.
resource "aws_cloudwatch_metric_alarm" "oldest" {
  for_each            = merge(aws_sqs_queue.work, { for role, q in aws_sqs_queue.dead : "${role}-dead" => q })
  alarm_name          = "${each.value.name} is not worked on"
  alarm_description   = "The oldest message of the queue waits for ${var.oldest_message} s. Is a process of its role running?"
  namespace           = "AWS/SQS"
  metric_name         = "ApproximateAgeOfOldestMessage"
  dimensions          = { QueueName = each.value.name }
  statistic           = "Maximum"
  period              = 300
  evaluation_periods  = 3
  threshold           = var.oldest_message
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
}

resource "aws_cloudwatch_metric_alarm" "throttled" {
  for_each            = merge({ for role, t in aws_dynamodb_table.rows : "${role}-rows" => t }, { for role, t in aws_dynamodb_table.blobs : "${role}-blobs" => t })
  alarm_name          = "${each.value.name} is throttled"
  alarm_description   = "DynamoDB refuses writes to the table for their number. They are repeated; work is slow."
  namespace           = "AWS/DynamoDB"
  metric_name         = "WriteThrottleEvents"
  dimensions          = { TableName = each.value.name }
  statistic           = "Sum"
  period              = 300
  evaluation_periods  = 3
  threshold           = 100
  comparison_operator = "GreaterThanThreshold"
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_actions
}
