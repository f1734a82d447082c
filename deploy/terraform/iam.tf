# What a process of each role may do, and nothing else: attach the policy to the role of its container or machine.

data "aws_iam_policy_document" "role" {
  for_each = local.queues

  statement {
    sid     = "Rows"
    actions = ["dynamodb:GetItem", "dynamodb:UpdateItem", "dynamodb:DeleteItem", "dynamodb:Query", "dynamodb:Scan"]
    resources = [
      aws_dynamodb_table.rows[each.key].arn,
      "${aws_dynamodb_table.rows[each.key].arn}/index/listing",
      "${aws_dynamodb_table.rows[each.key].arn}/index/outbox",
    ]
  }

  statement {
    sid       = "SmallBlobs"
    actions   = ["dynamodb:GetItem", "dynamodb:BatchWriteItem", "dynamodb:PutItem", "dynamodb:DeleteItem", "dynamodb:Scan"]
    resources = [aws_dynamodb_table.blobs[each.key].arn]
  }

  statement {
    sid     = "Messages"
    actions = ["sqs:GetQueueUrl", "sqs:SendMessage", "sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility"]
    resources = concat(
      [aws_sqs_queue.dead[each.key].arn],
      [for name in each.value : aws_sqs_queue.work["${each.key}-${name}"].arn],
    )
  }

  statement {
    sid       = "LargeBlobs"
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    resources = ["${aws_s3_bucket.blobs.arn}/${var.prefix}/${each.key}/*"]
  }

  # Content: clients, storage providers and the compute provider come with addresses that the storefront has signed, so they can do what it may.
  dynamic "statement" {
    for_each = each.key == "storefront" ? ["Uploads"] : []
    content {
      sid       = statement.value
      actions   = ["s3:GetObject", "s3:GetObjectVersion", "s3:PutObject", "s3:AbortMultipartUpload"]
      resources = ["${aws_s3_bucket.blobs.arn}/${var.prefix}/uploads/*"]
    }
  }

  # Without it S3 answers "forbidden" instead of "not found".
  statement {
    sid       = "LargeBlobsList"
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.blobs.arn]
  }
}

resource "aws_iam_policy" "role" {
  for_each = local.queues
  name     = "${var.prefix}-${each.key}"
  policy   = data.aws_iam_policy_document.role[each.key].json
}

# For whoever runs `w3filecoin admin check`.
data "aws_iam_policy_document" "check" {
  statement {
    actions   = ["dynamodb:DescribeTable", "dynamodb:DescribeContinuousBackups"]
    resources = concat([for t in aws_dynamodb_table.rows : t.arn], [for t in aws_dynamodb_table.blobs : t.arn])
  }
  statement {
    actions   = ["sqs:GetQueueUrl", "sqs:GetQueueAttributes"]
    resources = concat([for q in aws_sqs_queue.work : q.arn], [for q in aws_sqs_queue.dead : q.arn])
  }
  statement {
    actions   = ["s3:ListBucket", "s3:GetLifecycleConfiguration", "s3:GetBucketVersioning"]
    resources = [aws_s3_bucket.blobs.arn]
  }
}

resource "aws_iam_policy" "check" {
  name   = "${var.prefix}-check"
  policy = data.aws_iam_policy_document.check.json
}
