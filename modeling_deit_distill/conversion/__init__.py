"""Students from and to other formats: the public code's, timm's and transformers' own."""
