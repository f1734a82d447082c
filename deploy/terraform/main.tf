# What `w3filecoin serve --store aws://PREFIX?bucket=BUCKET` needs. `w3filecoin admin check --store …` compares a deployment with it.

locals {
  # The queues of each role. A test of cmd/w3filecoin compares them with those that the program works on.
  queues = {
    storefront = [
      "submit", "validate", "computed", "piece-offer", "equals", "piece-accepted", "aggregate", "pull-aggregate", "dealt", "sweep", "blame", "credit",
      "blob-accepted", "blob-delivered", "blob-expired", "blob-removed", "claimed", "claim-forward", "import",
    ]
    aggregator  = ["piece", "lane", "plan", "walk", "aggregate-offer", "pull-aggregate", "aggregate-accepted", "deliver"]
    dealer      = ["offer", "publish", "poll", "dealt", "deliver"]
    dealtracker = ["poll"]
    compute     = ["compute", "computed", "deliver"]
  }
  # One entry for each queue: "dealer-offer" = { role = "dealer", queue = "offer" }.
  each_queue = merge([for role, names in local.queues : { for name in names : "${role}-${name}" => { role = role, queue = name } }]...)
}

resource "aws_dynamodb_table" "rows" {
  for_each                    = local.queues
  name                        = "${var.prefix}-${each.key}-rows"
  billing_mode                = "PAY_PER_REQUEST"
  hash_key                    = "p"
  range_key                   = "s"
  deletion_protection_enabled = true

  dynamic "attribute" {
    for_each = { p = "S", s = "S", l = "S", o = "S", q = "N", t = "N" }
    content {
      name = attribute.key
      type = attribute.value
    }
  }

  global_secondary_index {
    name               = "listing"
    hash_key           = "l"
    range_key          = "o"
    projection_type    = "INCLUDE"
    non_key_attributes = ["n", "v"]
  }

  global_secondary_index {
    name            = "outbox"
    hash_key        = "q"
    range_key       = "t"
    projection_type = "KEYS_ONLY"
  }

  point_in_time_recovery { enabled = true }
  server_side_encryption { enabled = true }
  lifecycle { prevent_destroy = true }
}

resource "aws_dynamodb_table" "blobs" {
  for_each                    = local.queues
  name                        = "${var.prefix}-${each.key}-blobs"
  billing_mode                = "PAY_PER_REQUEST"
  hash_key                    = "c"
  deletion_protection_enabled = true

  attribute {
    name = "c"
    type = "B"
  }

  point_in_time_recovery { enabled = true }
  server_side_encryption { enabled = true }
  lifecycle { prevent_destroy = true }
}

resource "aws_sqs_queue" "dead" {
  for_each                  = local.queues
  name                      = "${var.prefix}-${each.key}_dead"
  message_retention_seconds = 1209600
  sqs_managed_sse_enabled   = true
}

resource "aws_sqs_queue" "work" {
  for_each                   = local.each_queue
  name                       = "${var.prefix}-${each.key}"
  message_retention_seconds  = 1209600
  visibility_timeout_seconds = 60
  sqs_managed_sse_enabled    = true
  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.dead[each.value.role].arn
    maxReceiveCount     = 25
  })
}

resource "aws_s3_bucket" "blobs" {
  bucket = var.bucket
  lifecycle { prevent_destroy = true }
}

resource "aws_s3_bucket_public_access_block" "blobs" {
  bucket                  = aws_s3_bucket.blobs.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_versioning" "blobs" {
  bucket = aws_s3_bucket.blobs.id
  versioning_configuration { status = "Enabled" }
}

resource "aws_s3_bucket_lifecycle_configuration" "blobs" {
  bucket = aws_s3_bucket.blobs.id
  rule {
    id     = "unfinished"
    status = "Enabled"
    filter {}
    abort_incomplete_multipart_upload { days_after_initiation = 7 }
  }
  rule {
    id     = "removed"
    status = "Enabled"
    filter {}
    noncurrent_version_expiration { noncurrent_days = 35 } # as long as tables can be restored
  }
}

# Browsers that upload ask the bucket first.
resource "aws_s3_bucket_cors_configuration" "blobs" {
  count  = length(var.upload_origins) > 0 ? 1 : 0
  bucket = aws_s3_bucket.blobs.id
  cors_rule {
    allowed_methods = ["PUT"]
    allowed_origins = var.upload_origins
    allowed_headers = ["content-type", "x-amz-checksum-sha256"]
    max_age_seconds = 3600
  }
}
